"""PrivacyPlan: what is promised, and everything that follows from it."""

from privacy.plan.build import plan_for
from privacy.plan.plan import PrivacyPlan
from privacy.terms import Clipping, Mechanism, Place, Relation, Sampler, Unit

__all__ = ["Clipping", "Mechanism", "Place", "PrivacyPlan", "Relation", "Sampler", "Unit", "plan_for"]
