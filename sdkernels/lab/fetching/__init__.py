"""Fetching data sets from their publishers: resumed, verified, placed whole."""

from sdkernels.lab.fetching.data_sets import Fetched, fetch, presence
from sdkernels.lab.fetching.download import Patience
from sdkernels.lab.fetching.partial import FetchError

__all__ = ["FetchError", "Fetched", "Patience", "fetch", "presence"]
