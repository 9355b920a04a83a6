"""The attacks that there are, with their attackers and their metrics: what a policy may speak of."""

from __future__ import annotations

import re
from collections.abc import Collection

LINKAGE = "linkage"
REIDENTIFICATION = "re-identification"
ATTRIBUTES = "attribute inference"
RECONSTRUCTION = "reconstruction"
MEMBERSHIP = "membership inference"

MATCHED_FILTER = "holder of the originals, matched filter"
NETWORK = "verification network"
THUMBNAILS = "correlation of thumbnails"
GRADIENTS = "histograms of gradients"
PART = "part of the network: "
REGRESSION = "regression on the images' features"
LOSS = "threshold on the loss"
LIRA = "likelihood ratio of shadow models"
AVERAGING = "averaging releases"
SUBTRACTING = "subtracting two levels"
GUESSING = "guessing the seed"
DENOISER = "the denoiser"
TRAINED = "a network trained for it"
NOBODY = "none: the image itself"
NOBODY_NOISY = "none: the noisy image itself"

OF_PATCH = "top_1_patch_"
"""How the metric of linkage by a central patch begins; its side in pixels follows."""
KNOWING = "_with_metadata"
"""How the metrics of the network end that knows sex, view and age as well."""

STRONGEST = {REIDENTIFICATION: NETWORK, ATTRIBUTES: REGRESSION}
"""The attacker without which an attack counts as not made; names that begin so are the same attacker."""

_OF_PAIRS = r"(auc|auc_matched|precision_at_1|tpr_at_fpr_1e-3)"
_METRICS = {
    LINKAGE: rf"top_1|top_1_checked|{OF_PATCH}\d+",
    REIDENTIFICATION: rf"{_OF_PAIRS}({KNOWING})?",
    ATTRIBUTES: "(sex|view|age_group)_(auc|accuracy)",
    RECONSTRUCTION: "psnr|ssim|psnr_of_releases|psnr_of_two_levels|seeds_found",
    MEMBERSHIP: r"auc|tpr_at_fpr_0\.01|tpr_at_fpr_0\.001",
}
_KNOWN = {
    LINKAGE: "top_1, top_1_checked, top_1_patch_16",
    REIDENTIFICATION: "auc, auc_matched, precision_at_1, tpr_at_fpr_1e-3, each also with _with_metadata",
    ATTRIBUTES: "sex_auc, view_auc, sex_accuracy, view_accuracy, age_group_accuracy",
    RECONSTRUCTION: "psnr, ssim, psnr_of_releases, psnr_of_two_levels, seeds_found",
    MEMBERSHIP: "auc, tpr_at_fpr_0.01, tpr_at_fpr_0.001",
}
_OF_NOISY = ("top_1_checked", "psnr_of_releases", "psnr_of_two_levels", "seeds_found")
_ATTACKERS = {
    LINKAGE: (MATCHED_FILTER,),
    REIDENTIFICATION: (NETWORK, THUMBNAILS, GRADIENTS),
    ATTRIBUTES: (REGRESSION,),
    RECONSTRUCTION: (AVERAGING, SUBTRACTING, GUESSING, DENOISER, TRAINED, NOBODY, NOBODY_NOISY),
    MEMBERSHIP: (LOSS, LIRA),
}


def listed(names: Collection[str]) -> str:
    """`sex, view and age`."""
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


def metadata_alone(known: Collection[str]) -> str:
    """The attacker who sees no pixel, by what is known of the patients."""
    return f"{listed(known)} alone"


def network_knowing(known: Collection[str]) -> str:
    """The network that is told what is known of the patients as well."""
    return f"{NETWORK} with {listed(known)}"


def never_measured(metric: str, kinds: Collection[str], *, known: Collection[str] | None) -> str:
    """Why a metric cannot be measured on images of these kinds, nor where so much is known of them; empty if it can.

    `known`: which of sex, view and age are known of any image; None where nobody has looked.
    """
    others = sorted(set(kinds) - {"noisy"})
    if metric in _OF_NOISY and others:
        return f"{metric} is measured on noisy images alone, never on {listed(others)} ones; say kinds = ['noisy']"
    needed = metric.partition("_")[0]
    of_any = metric.startswith("auc_matched") or metric.endswith(KNOWING)
    if known is None or (of_any and known) or needed in known:
        return ""
    if of_any:
        return f"{metric} needs sex, view or age, and none is known of any image (--labels)"
    return f"{metric} needs {needed}, which is known of no image (--labels)" if needed in ("sex", "view", "age") else ""


def unknown(*, attack: str, metric: str, attacker: str) -> str:
    """What of a limit no audit has, and what there is instead; empty where there is such a figure."""
    if attack not in _METRICS:
        return f"no attack is called {attack}; there are {', '.join(_METRICS)}"
    if re.fullmatch(_METRICS[attack], metric) is None:
        return f"{attack} has no metric {metric}; there are {_KNOWN[attack]}"
    known = _ATTACKERS[attack]
    named = not attacker or attacker in known or attacker.startswith(tuple(f"{one}, " for one in known))
    others = attack == REIDENTIFICATION and (
        attacker.startswith((f"{NETWORK} with ", PART)) or attacker.endswith(" alone")
    )
    if not (named or others):
        return f"{attack} has no attacker {attacker}; there are {', '.join(known)}"
    return ""
