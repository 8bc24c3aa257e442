"""Benchmarks of the runtime, measured side by side with torch.distributed.pipelining of the same torch.

Every comparison runs both sides in the same processes, alternating, and takes medians over the rounds.
"""
