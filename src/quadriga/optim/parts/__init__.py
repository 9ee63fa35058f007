"""What optimizers share: groups, multi-tensor updates, the moving average."""
