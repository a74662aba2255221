"""A Kubernetes to try Rowmill on: an existing one, kind, or one made of Debian's own packages on this machine.

`hack/cluster` and `hack/images` are the commands; everything here needs Python 3.11's standard library alone,
because it has to run before anything is installed.
"""
