"""What methods share: teachers, and encoders of several views."""
