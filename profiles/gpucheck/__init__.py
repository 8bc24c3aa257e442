"""The steps of `make gpu`; `profiles/gpu_check.py` runs them."""
