"""What a student learns from a teacher, one loss per module.

A new loss on logits is a function, with settings in `distillation.settings` and a case in `distillation.lesson`. A new
loss on inner layers is an `Objective` that takes a `Teacher`, with settings and a line in `distillation.objective`.
"""
