"""What a student learns from a teacher, one loss per module.

A new loss on logits is an `Objective` that takes a `Teacher`. A loss on inner layers also has a class of settings in
`distillation.settings`, named by `loss:`.
"""
