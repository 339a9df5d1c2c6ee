"""The site.toml that ``umbel site init`` writes: it says what can be allowed, and allows a dry run."""

STARTER = """\
# The policy of this site. What is not allowed here is refused; `umbel site check` says whether it is well formed.
name = "{name}"
dry-run = true            # couriers may ask whether a run would be allowed; nothing is trained or spent

[keys]                    # paths count from this folder; none of them may be readable by others
identity = "identity"     # folder: identity.key; from the federation authority.pub, roster.json, roster.sig
seal = "seal.key"

# Coordinators whose runs may come here, each by its own way in: a socket that only its SuperNode may open, or the
# names in the certificates of its couriers.
# [[coordinator]]
# name = "consortium"
# socket = "run/consortium.sock"
# callers = ["{name}"]

# [listen]                # only for couriers on another machine
# address = "0.0.0.0:9443"
# tls = "tls"             # folder with ca.pem, cert.pem, key.pem, crl.pem

# [[model]]
# name = "demo"           # what a run calls it
# path = ""               # where it lies here
# hash = ""               # of its files; `umbel site check` prints it

# [[data]]
# name = "scans"          # what a run calls it, and the id of its budget
# root = "/srv/data/scans"
# columns = ["image", "question", "answer"]
# epsilon = 8.0           # over the lifetime of the data set, all runs and coordinators together
# delta = 1e-5

[runs]
approval = "each"         # every run is approved by a person: umbel site review RUN.toml --approve
repeat = false            # an approval is for one run, which may be resumed
strategies = []           # for example ["ffa-lora"]
rank = 0                  # largest LoRA rank
steps = 0                 # most local steps of a round
rounds = 0                # most rounds of a run
secure-aggregation = true
cohort = 3                # fewest sites in a sum
privacy = ["step"]        # noise in every local step, at this site
evaluate = false          # no counts of this site's own examples leave it

# [hours]
# days = ["mon", "tue", "wed", "thu", "fri"]
# from = 19:00:00
# to = 06:00:00
# zone = "Europe/Vienna"

[limits]
memory = 0                # megabytes; 0 sets no limit
threads = 0
gpu = false
message = 256             # megabytes of one message
"""
