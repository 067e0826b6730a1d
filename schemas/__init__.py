"""What a change is: pure types and rules. No I/O, no clock, no environment."""
