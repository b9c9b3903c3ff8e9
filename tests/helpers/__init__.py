"""What the tests of several packages share: scenes, oracles, tools run as users do."""
