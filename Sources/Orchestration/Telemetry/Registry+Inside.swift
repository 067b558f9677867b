import ControlProtocol
import Foundation
import Libvirt
import Platform
import Telemetry

extension Registry {
    /// One guest at a time: libvirt has few threads for questions that may hang.
    private static let insideTurn = NSLock()

    /// What the agent of a guest that runs here (name, id or UUID) tells of its inside, now. Takes up to 20 s.
    ///
    /// - Throws: `ControlFailure` when the guest does not run here. That no agent answers is a note in the answer.
    public func inside(of word: String) throws -> GuestInside {
        let known = try lookup(word)
        guard try known.isActive() else { throw ControlFailure("Domain \(known.name) does not run on \(environment.hostName)", advice: "Run the command on the host where it does") }
        guard telemetryAccess(known.uuid) != .none else {
            throw ControlFailure("Domain \(known.name) is not asked now: it is a shadow that waits, or changes hosts", advice: "Run the command where the guest runs, or a little later")
        }
        Self.insideTurn.lock()
        defer { Self.insideTurn.unlock() }
        // Of its own: an agent that hangs must not be in the way of those who hand guests over.
        let connection = try Connection.open(environment.configuration.libvirtURI)
        defer { connection.close() }
        let domain = try connection.lookup(uuid: known.uuid)
        let empty = GuestInside(host: environment.hostName, domain: known.name, uuid: known.uuid, time: Timestamp.now)
        return InsideLook.look(domain, empty, mayExecute: environment.configuration.guestExec) { [weak self] in
            self.map { $0.telemetryAccess(known.uuid) != .none } ?? false
        }
    }
}
