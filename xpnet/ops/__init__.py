"""Operations on native arrays: each one a forward and a backward pass in pure Array API."""
