//! What goes wrong.

/// One kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// The coordinator dies before its next commit.
    BrainDiesBeforeCommit,
    /// The coordinator dies after its next commit, between two effects.
    BrainDiesAfterCommit,
    /// The coordinator stands still, longer than some job's `lost_after`.
    BrainPaused,
    /// Its disk is full for a while.
    BrainDiskFull,
    /// Its disk has room for records and none for lines, for a while.
    BrainDiskShort,
    /// Its commits take long for a while.
    BrainDiskSlow,
    /// An agent dies; its workers go on.
    AgentDies,
    /// A machine starts anew.
    MachineReboots,
    /// A worker dies.
    WorkerDies,
    /// Every worker of one machine dies, for a while.
    MachineSick,
    /// Nothing gets through, either way.
    Cut,
    /// Nothing gets from the agent to the coordinator.
    CutToBrain,
    /// Nothing gets from the coordinator to the agent.
    CutToNode,
    /// A connection breaks, and the next one is made at once.
    ConnectionBreaks,
    /// A machine's wall clock jumps.
    ClockJumps,
    /// An agent's disk takes nothing for a while.
    AgentDiskFull,
    /// Messages arrive twice for a while, as they do after a reconnect.
    Repeats,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 17] = [
        Self::BrainDiesBeforeCommit,
        Self::BrainDiesAfterCommit,
        Self::BrainPaused,
        Self::BrainDiskFull,
        Self::BrainDiskShort,
        Self::BrainDiskSlow,
        Self::AgentDies,
        Self::MachineReboots,
        Self::WorkerDies,
        Self::MachineSick,
        Self::Cut,
        Self::CutToBrain,
        Self::CutToNode,
        Self::ConnectionBreaks,
        Self::ClockJumps,
        Self::AgentDiskFull,
        Self::Repeats,
    ];
}
