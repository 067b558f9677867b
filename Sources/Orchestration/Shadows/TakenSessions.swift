import ControlProtocol
import Foundation
import Libvirt
import Platform

/// Sessions by which guests came to run on this host, below `STATE_DIRECTORY/host/`, over restarts: for a former primary that never heard the answer to its
/// order. By the time it can ask, the guest may be protected from here, have gone on or have ended, and nothing else tell of the session any more; "unknown"
/// would let its old copy run.
public final class TakenSessions: Sendable {
    private struct Content: Codable {
        var version = 1
        /// The latest last.
        var sessions: [UUID] = []
    }

    /// Primaries in doubt ask twice a second: what is older than so many hand-overs nobody waits for.
    static let most = 1024

    private let folder: String
    private var path: String { "\(folder)/taken.json" }
    /// Nil: not read yet.
    private let content = Guarded<Content?>(nil)

    init(stateDirectory: String) { folder = "\(stateDirectory)/host" }

    private func load() -> Content {
        guard let data = FileManager.default.contents(atPath: path) else { return Content() }
        do {
            return try JSONDecoder().decode(Content.self, from: data)
        } catch {
            Log.error("Cannot read \(path): \(error). Which guests came here before is not known; remove the file")
            return Content()
        }
    }

    /// At once, for whoever asks; `keep` is for the service's successor.
    func note(_ session: UUID) {
        content.change { content in
            var current = content ?? load()
            if !current.sessions.contains(session) { current.sessions = (current.sessions + [session]).suffix(Self.most) }
            content = current
        }
    }

    func keep() {
        content.change { content in
            guard let current = content else { return }
            do {
                try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true, attributes: [.posixPermissions: 0o700])
                try DurableFile.write(json: current, to: path)
            } catch {
                Log.error("Which guests came here cannot be kept in \(path): \(error)")
            }
        }
    }

    func contains(_ session: UUID) -> Bool {
        content.change { content in
            let current = content ?? load()
            content = current
            return current.sessions.contains(session)
        }
    }
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
