import ControlProtocol
import Foundation
import Platform

/// A host that is back says so: guests elsewhere that lack a shadow would otherwise find out up to five minutes later.
extension Registry {
    private static let limitMs = 5000.0
    private static let mostAtOnce = 32

    /// Tells all peers that this host takes shadows, without waiting for them. A peer that is not there asks by itself when it is.
    public func announce() {
        guard !drains.isDraining else { return }
        startThread("announce") { [environment] in
            let clients = environment.configuration.peers.map(environment.client(of:))
            for start in stride(from: 0, to: clients.count, by: Self.mostAtOnce) {
                _ = forEachAtOnce("announce", Array(clients[start..<min(start + Self.mostAtOnce, clients.count)])) { client in
                    do {
                        _ = try client.ask(PeerRequest(.available, host: environment.hostName), timeoutMs: Self.limitMs)
                    } catch {
                        Log.debug("\(client.name) was not told that \(environment.hostName) takes shadows: \(error)")
                    }
                }
            }
        }
    }
}

extension PolicyKeeper {
    /// All guests at once would be a crowd at a host that has just begun.
    private static let withinMs = 200.0...1500.0

    /// What waits for its next attempt is tried now: `host` takes shadows. What failed there before is forgotten.
    func hostIsAvailable(_ host: String) {
        changeWaiting { entry in
            entry.suspects[host] = nil
            // It is drained no more, and a shadow that could not leave it yet may stay.
            if entry.leaves == host { entry.leaves = nil }
            // Its libvirt may be a while in giving its first answer: the pauses begin anew.
            entry.failures = 1
            guard !entry.isBusy else { return entry.wasCalled = true }
            entry.due = min(entry.due, MonotonicTime.now.adding(milliseconds: Double.random(in: Self.withinMs)))
        }
    }
}
