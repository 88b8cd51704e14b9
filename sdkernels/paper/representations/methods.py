"""What figures call the ways to compare two layers."""

METHODS = {"pwcca": "PWCCA", "cca": "mean CCA", "svcca": "SVCCA", "cka": "CKA"}
