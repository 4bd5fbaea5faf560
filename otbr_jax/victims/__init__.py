"""Victims: attacks are made, networks trained and measured."""
