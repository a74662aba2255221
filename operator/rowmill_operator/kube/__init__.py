"""The Kubernetes side of the operator: watches, pure builders of manifests and status, the process itself."""
