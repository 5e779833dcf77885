"""Who hosts what: from what is known of the swarm to what should be done next. All of it is pure.

view     what is known of the swarm
actions  what can be done
outcome  the swarm as it will be when actions are carried out
stock    how many whole pipelines can be made of who is there
mend     pipelines that lost an expert
follow   what spares keep a copy of
rules    the order in which all that is decided
words    why the plan is where it is, for people
"""

from distqat.roles.plan.actions import Action, Assign, Dissolve, Follow, Form
from distqat.roles.plan.rules import keep, plan
from distqat.roles.plan.view import ExpertView, Pipeline, View
from distqat.roles.plan.words import missing

__all__ = [
    "Action",
    "Assign",
    "Dissolve",
    "ExpertView",
    "Follow",
    "Form",
    "Pipeline",
    "View",
    "keep",
    "missing",
    "plan",
]
