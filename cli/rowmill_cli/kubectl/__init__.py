"""`kubectl rowmill`: BatchJobs for people who have a cluster and no access to the database.

Speaks to the cluster through the user's own kubectl, so that every login, context and proxy works as it does there.
"""
