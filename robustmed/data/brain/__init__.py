"""Brain MR with tumours (BraTS), and its phantom."""
