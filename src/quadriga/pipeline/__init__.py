"""Pipelined execution: actions, schedules, topology, the executor and the planner."""
