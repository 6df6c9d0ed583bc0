"""The conflict layer's values: cells of dots under a causal context, and what each policy makes of them.

Read in this order: `context`, `state`, `codec` (bytes, append, merge), `view` (what a policy sees and writes), one module per
family of types, `policies` (the table), `update` (from an operation to a delta).
"""
