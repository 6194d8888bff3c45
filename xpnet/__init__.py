"""xpnet: write a network once against the Array API; run it on NumPy or CuPy, at the speed of the hardware."""

__version__ = "0.1.0"
