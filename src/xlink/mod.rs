//! Sans-IO XLink: streams, credits, acks, releases, timers. Written by the stick author.
