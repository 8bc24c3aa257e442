"""What runs on the device: Triton kernels, and the functions that they share. Nothing here launches anything."""
