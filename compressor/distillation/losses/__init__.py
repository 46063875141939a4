"""What a student learns from a teacher, one loss a module.

A new loss on logits takes a `Teacher` and is an `Objective`; one on layers inside has a class of settings in
`distillation.settings`, named by `loss:`.
"""
