"""Every policy by its name."""

from __future__ import annotations

from loratlas.dynamic.policies.base import Policy
from loratlas.dynamic.policies.control import Nothing, RandomMoves
from loratlas.dynamic.policies.head import Descent, Energy, Weighted
from loratlas.dynamic.policies.published import AdaLoraRule, ElaLoraRule, FlexLoraRule, IguLoraRule
from loratlas.dynamic.policies.signal import AttentionPolicy, GradientPolicy
from loratlas.errors import SettingsError

DEFAULT = "weighted"
"""What ``auto`` follows."""

POLICIES: dict[str, type[Policy]] = {
    kind.name: kind
    for kind in (
        Weighted,
        Energy,
        Descent,
        GradientPolicy,
        AttentionPolicy,
        AdaLoraRule,
        IguLoraRule,
        ElaLoraRule,
        FlexLoraRule,
        RandomMoves,
        Nothing,
    )
}


def policy_named(name: str | None) -> Policy:
    """The policy of a name; of None the default one.

    Raises:
        SettingsError: there is none.

    >>> policy_named("energy").name, policy_named(None).name
    ('energy', 'weighted')
    """
    kind = POLICIES.get(name or DEFAULT)
    if kind is None:
        raise SettingsError(given=f"--signal {name}", found="no such policy", instead=" or ".join(POLICIES))
    return kind()
