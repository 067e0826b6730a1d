"""What is measured, one module each: `measure(bench)` returns a Section, or raises what kept it from measuring."""
