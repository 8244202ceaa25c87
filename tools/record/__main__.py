"""python -m tools.record. Worker processes do not import this module, nor, for its sake, PyTorch."""

from tools.record import main

if __name__ == "__main__":
    main()
