"""Losses that more than one method uses: functions of tensors."""
