"""Faster versions of a few operations, one package per array library; reached only through the op registry."""
