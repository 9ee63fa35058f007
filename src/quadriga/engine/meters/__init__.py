"""What a step costs: time by phase, FLOPs, memory, throughput."""
