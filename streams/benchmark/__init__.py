"""`upwell benchmark`: what upwell does next to its parts alone, measured in one run on one machine.

Pure: corpus, plan, results, comparison, chart. The rest starts processes: `line.py` the stack and deployments of its
own, `bare.py` and `faust_loop.py` the parts alone, `sections/` one module for each thing that is measured.
"""
