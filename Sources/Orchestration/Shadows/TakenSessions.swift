import ControlProtocol
import Foundation
import Libvirt
import Platform

/// Sessions by which guests came to run on this host, below `STATE_DIRECTORY/host/`, over restarts: for a former primary that never heard the answer to its
/// order. By the time it can ask, the guest may be protected from here, have gone on or have ended, and nothing else tell of the session any more; "unknown"
/// would let its old copy run.
public final class TakenSessions: Sendable {
    private struct Content: Codable, Sendable {
        var version = 1
        /// The latest last.
        var sessions: [UUID] = []
    }

    /// Primaries in doubt ask twice a second: what is older than so many hand-overs nobody waits for.
    static let most = 1024

    private let file: HostFile<Content>

    init(stateDirectory: String) {
        file = HostFile("taken.json", stateDirectory: stateDirectory, empty: Content(), whenUnreadable: "Which guests came here before is not known")
    }

    /// At once, for whoever asks; `keep` is for the service's successor.
    func note(_ session: UUID) {
        // Nothing is written, so nothing fails.
        try? file.change(keeping: false) { content in
            if !content.sessions.contains(session) { content.sessions = (content.sessions + [session]).suffix(Self.most) }
        }
    }

    func keep() {
        do { try file.change(keeping: true) { _ in } } catch { Log.error("Which guests came here cannot be kept in \(file.path): \(error)") }
    }

    func contains(_ session: UUID) -> Bool { file.read { $0.sessions.contains(session) } }
}

extension Registry {
    /// What becomes of a session that no shadow here has: whether its guest runs, and whether it ever did.
    func formerSession(_ request: PeerRequest) throws -> PeerResponse {
        guard let session = request.session else { return PeerResponse(phase: .unknown) }
        let uuid = (request.uuid ?? "").lowercased()
        // Protected from here by now.
        if let protection = primary(uuid), protection.record.cameBy == session { return PeerResponse(phase: .running, hasRun: true) }
        guard environment.taken.contains(session) else { return PeerResponse(phase: .unknown) }
        // It is being protected from here, or was and is no more. A shadow that waits here is another session's.
        if let shadow = shadow(uuid) { return PeerResponse(phase: shadow.phase == .running ? .running : .unknown, hasRun: true) }
        do {
            return PeerResponse(phase: try environment.connect().lookup(uuid: uuid).isActive() ? .running : .unknown, hasRun: true)
        } catch let error as LibvirtError where error.isNoDomain {
            return PeerResponse(phase: .unknown, hasRun: true)
        }
    }
}
