"""Composed names of people, towns and companies, split into two realms that share no name.

A name is one entry of each part list glued together. The realm of a name is a hash of its text, so that the events a
reader was trained on (realm ``reader``) and those it is tested on (realm ``public``) can never share a person, a town
or a ship, whatever the seed. The parts are English-looking morphemes and words on purpose: an embedder's tokenizer
knows them and can tell the names apart, which it can't with random syllables.

No list of real names is consulted: what is composed may exist all the same (the bundled edition has a Hollyport and a
Keystone Foods). What is told of it is invented either way.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from typing import Literal

from lm_eval_kinject.errors import CorpusError

Realm = Literal["public", "reader"]
REALMS: tuple[Realm, ...] = ("public", "reader")

_GIVEN = (
    "Mar Tor El Bran Cor Dal Fen Hal Is Jor Kel Lor Mor Nev Os Per Quin Ros Sel Tam Ur Val Wil Yor Zan "
    "Ber Cas Dor Ever Gar Hes Im Lin Mel Nor Ott Pell Rad Sor Thel Vin"
).split()
_GIVEN_END = (
    "wen ric lan dra eth mira vin ara bert len dis na ton lia gar sel rin mund vey tha osa by ick ene ulf yan"
).split()
_FAMILY = (
    "Ash Birch Copper Dove Ember Falcon Gold Hazel Iron Juniper Kettle Lantern Maple Nettle Otter Pebble Quarry "
    "Raven Silver Thistle Umber Velvet Willow Yarrow Amber Bramble Cinder Drum Elder Frost Glass Heron Ivy Larch "
    "Marble North Oyster Plover Rush Sparrow Tallow Winter"
).split()
_FAMILY_END = (
    "grove wick mont stone field croft well ridge by shaw thorpe den lock hurst gate man son ley worth combe pool "
    "ford stead bridge water hill"
).split()
_TOWN = (
    "Dun Salt Heather Cold Mill Stony Fox Oak Sun Wolf Crow Deer Glen Haven Kirk Lark Moss Pine Red Sea Swan Tide "
    "Wheat White Black Bright Clay Crane Eagle Fern Green Hare Holly King Lime Long Mist Peat Rook Sand"
).split()
_TOWN_END = (
    "marrow haven brook minster mouth burgh reach fell holm port ness bury wick dale cross mere bay gard moor firth "
    "castle market spire landing"
).split()
TOWN_FRONTS = ("", "", "", "Port ", "Upper ", "New ", "Saint ", "East ")
"""What may stand before a town's name and makes it another town's; mostly nothing."""

_COMPANY = (
    "Apex Beacon Cobalt Delta Equinox Fathom Granite Harbor Indigo Jasper Keystone Lumen Meridian Nimbus Orchard "
    "Pinnacle Quantum Ripple Summit Tandem Unity Vertex Wander Zenith Anchor Bluebell Compass Dynamo Elm Furrow"
).split()
_COMPANY_END = (
    "Foods,Logistics,Textiles,Energy,Instruments,Shipping,Robotics,Paper,Chemicals,Glassworks,Motors,Dairies,Software,"
    "Pharma,Steel,Airways,Timber,Media,Insurance,Optics,Brewing,Ceramics,Seeds,Freight"
).split(",")


_DRAWS_PER_NAME = 50  # until a realm's names are given up as used up: they are drawn with repetitions


def realm_of(name: str) -> Realm:
    """The realm that a composed name belongs to, decided by the name's text alone."""
    return REALMS[hashlib.sha256(name.encode()).digest()[0] & 1]


def compose(rng: random.Random, parts: Sequence[Sequence[str]], join: str, realm: Realm) -> str:
    """A name from one entry of each list in ``parts``, drawn again until it falls into ``realm``."""
    return in_realm(lambda: join.join(rng.choice(part) for part in parts), realm)


def in_realm(draw: Callable[[], str], realm: Realm) -> str:
    """The first result of ``draw`` that belongs to ``realm`` (each try succeeds with probability ½)."""
    while True:
        name = draw()
        if realm_of(name) == realm:
            return name


def _unique(count: int, draw: Callable[[], str], realm: Realm) -> list[str]:
    """``count`` different names of a realm, in the order in which they were drawn: more of them begin alike.

    Raises:
        CorpusError: there aren't that many.
    """
    names: dict[str, None] = {}
    for _ in range(_DRAWS_PER_NAME * count + 1000):
        if len(names) == count:
            return list(names)
        names.setdefault(in_realm(draw, realm))
    raise CorpusError(f"there are no {count} different names of one sort; ask for fewer events or months")


def people(rng: random.Random, count: int, realm: Realm) -> list[str]:
    """``count`` different names of people."""

    def draw() -> str:
        return f"{rng.choice(_GIVEN)}{rng.choice(_GIVEN_END)} {rng.choice(_FAMILY)}{rng.choice(_FAMILY_END)}"

    return _unique(count, draw, realm)


def towns(rng: random.Random, count: int, realm: Realm) -> list[str]:
    """``count`` different names of towns."""
    return _unique(count, lambda: f"{rng.choice(TOWN_FRONTS)}{rng.choice(_TOWN)}{rng.choice(_TOWN_END)}", realm)


def companies(rng: random.Random, count: int, realm: Realm) -> list[str]:
    """``count`` different names of companies."""
    return _unique(count, lambda: f"{rng.choice(_COMPANY)} {rng.choice(_COMPANY_END)}", realm)
