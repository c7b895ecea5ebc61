"""HyperQueue's side of B2: one server and one worker in this process, tasks that run `true`. Prints one line of JSON last."""

import json
import resource
import sys
import time

from hyperqueue import Job, LocalCluster
from hyperqueue.cluster import WorkerConfig


def seconds(who):
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime


def main():
    tasks, slots = int(sys.argv[1]), int(sys.argv[2])
    with LocalCluster() as cluster:
        cluster.start_worker(WorkerConfig(cores=slots))
        client = cluster.client()
        job = Job()
        for _ in range(tasks):
            job.program(["true"])
        own, children = seconds(resource.RUSAGE_SELF), seconds(resource.RUSAGE_CHILDREN)
        began = time.monotonic()
        submitted = client.submit(job)
        client.wait_for_jobs([submitted])
        took = time.monotonic() - began
        answer = {
            "seconds": took,
            "own_cpu": seconds(resource.RUSAGE_SELF) - own,
            "task_cpu": seconds(resource.RUSAGE_CHILDREN) - children,
        }
    print(json.dumps(answer))


main()
