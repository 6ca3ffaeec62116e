"""``gpufut demo``: photographs through four stages that hand on futures, checked and drawn.

``world`` is what the stages ask of a device; ``stages`` are the stages, the same on any device;
``pipeline`` runs them; ``command`` checks, tells and draws.
"""
