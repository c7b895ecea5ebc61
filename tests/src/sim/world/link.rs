//! Connections: made, broken, and what is said over them.

use super::*;

impl World {
    /// Nothing gets through one way: the connection ends when its ends notice.
    pub(super) fn doom(&mut self, connection: u64) {
        self.at(IDLE, Happening::Broken { connection });
    }

    pub(super) fn broken(&mut self, connection: u64) {
        self.wire.close(connection);
        let session = self.brain.sessions.iter().find(|(_, (_, live))| *live == connection);
        if let Some((node, session)) = session.map(|(node, (session, _))| (*node, *session)) {
            self.brain.sessions.remove(&node);
            self.post(Event::SessionClosed { node, session, nonsense: None });
        }
        let ended = self.nodes.iter().position(|node| node.talk.is_some_and(|talk| talk.connection == connection));
        if let Some(node) = ended {
            self.nodes[node].talk = None;
            self.dial_soon(node);
        }
    }

    pub(super) fn dial_soon(&mut self, node: usize) {
        let (life, wait) = (self.nodes[node].life, self.chance.between(100, 3_000));
        self.at(wait, Happening::Dial { node, life });
    }

    pub(super) fn dial(&mut self, node: usize, life: u64) {
        let gone = self.nodes[node].life != life || self.nodes[node].host.is_none() || self.nodes[node].talk.is_some();
        if gone {
            return;
        }
        if self.is_gone(node) {
            return;
        }
        // The hello is the driver's, and that waits for its disk.
        let busy = self.nodes[node].waits_for_disk.is_some();
        if self.brain.turn.is_none() || busy || self.wire.is_cut(node, self.now) {
            return self.dial_soon(node);
        }
        let connection = self.wire.connect(node);
        self.nodes[node].connected(connection);
        self.nodes[node].told = self.nodes[node].usable();
        let hello = Box::new(self.nodes[node].hello());
        self.say_to_brain(node, Said::Hello(hello));
    }

    pub(super) fn say_to_brain(&mut self, node: usize, message: Said) {
        let Some(connection) = self.nodes[node].talk.map(|talk| talk.connection) else { return };
        match self.wire.arrival(connection, Way::ToBrain, self.now, &mut self.chance) {
            Some(at) => self.at(at - self.now, Happening::ToBrain { connection, message }),
            None => self.doom(connection),
        }
    }

    pub(super) fn tell(&mut self, node: usize, message: FromAgent) {
        if self.wire.repeats(node, self.now) {
            self.tally.count("said twice to the coordinator");
            self.say_to_brain(node, Said::Message(Box::new(message.clone())));
        }
        self.say_to_brain(node, Said::Message(Box::new(message)));
    }
}
