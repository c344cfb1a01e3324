"""Several processes of one run: join those that torchrun started, and share work with them."""

from ecoflap.core.ranks.join import joined as joined
from ecoflap.core.ranks.ranks import ALONE as ALONE
from ecoflap.core.ranks.ranks import Ranks as Ranks

__all__ = ["ALONE", "Ranks", "joined"]
