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
    /// An agent dies between two writes or effects of a turn.
    AgentDiesInATurn,
    /// An agent stands still, longer than its lease; its workers go on.
    AgentPaused,
    /// A machine loses its power, and what its disk had not synced.
    MachineReboots,
    /// A worker dies.
    WorkerDies,
    /// A worker hangs.
    WorkerHangs,
    /// A worker hangs and cannot be killed.
    WorkerStuck,
    /// A worker's device fails.
    DeviceFails,
    /// A worker finds its disk full.
    WorkerDiskFull,
    /// A worker takes more memory than its agent allows.
    WorkerTooLarge,
    /// Every worker of one machine dies, for a while.
    MachineSick,
    /// No files come to one machine, for a while.
    FilesMissing,
    /// A second machine comes with a node's key.
    KeyCopied,
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
    /// Its writes take long for a while.
    AgentDiskSlow,
    /// Messages arrive twice for a while, either way, as they do after a reconnect.
    Repeats,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 27] = [
        Self::BrainDiesBeforeCommit,
        Self::BrainDiesAfterCommit,
        Self::BrainPaused,
        Self::BrainDiskFull,
        Self::BrainDiskShort,
        Self::BrainDiskSlow,
        Self::AgentDies,
        Self::AgentDiesInATurn,
        Self::AgentPaused,
        Self::MachineReboots,
        Self::WorkerDies,
        Self::WorkerHangs,
        Self::WorkerStuck,
        Self::DeviceFails,
        Self::WorkerDiskFull,
        Self::WorkerTooLarge,
        Self::MachineSick,
        Self::FilesMissing,
        Self::KeyCopied,
        Self::Cut,
        Self::CutToBrain,
        Self::CutToNode,
        Self::ConnectionBreaks,
        Self::ClockJumps,
        Self::AgentDiskFull,
        Self::AgentDiskSlow,
        Self::Repeats,
    ];
}
