import ControlProtocol
import Foundation
import Platform

/// What is told of domains that lack shadows, and how those are noticed that lose one later.
extension PolicyKeeper {
    /// What there is to say after an attempt that did not lead to all that was wanted.
    struct Told {
        var text: String
        /// Said for the first time: the same again goes to the log of developers only.
        var isNew: Bool
        var name: String
        var pauseMs: Double
        /// Nil: it has no shadow at all.
        var shortage: Shortage?
    }

    func tell(_ told: Told, _ uuid: String) {
        let text = "\(told.name.isEmpty ? uuid : told.name): \(told.text). Next attempt in \(Int((told.pauseMs / 1000).rounded(.up))) s"
        guard told.isNew else { return Log.debug(text) }
        Log.warning(text)
        guard let shortage = told.shortage else { return }
        environment?.events.record(kind: .shadowMissing, domain: told.name, uuid: uuid, message: shortage.text,
                                   details: ["wanted": "\(shortage.wanted)", "present": "\(shortage.present)"])
    }

    /// So that "has 310 MiB free" and "has 311 MiB free" are one reason.
    static func withoutFigures(_ reason: String) -> String { reason.filter { !$0.isNumber } }

    /// Protected domains whose shadow has been away for too long are looked at: nothing else tells of it. Asks nobody but the protections themselves.
    func lookAtLost(_ registry: Registry) {
        let limit = registry.environment.replaceAfterMs
        for protection in registry.runningPrimaries where protection.keptSlots.contains(where: { $0.isLost(afterMs: limit) }) {
            let uuid = protection.domain.uuid
            // Without a policy nothing follows from it; what is tried already has its own pace.
            if wanted(uuid) != nil, !isKnown(uuid) { look(uuid) }
        }
    }

    /// Adds to a protection's status what its policy asks for beyond it.
    func addingShortage(_ status: DomainStatus) -> DomainStatus {
        guard status.role == .primary, let wanted = wanted(status.uuid), let shadows = status.shadows else { return status }
        var status = status
        let following = shadows.filter { $0.state == .protected || $0.state == .suspended }.count
        status.missingShadows = max(0, wanted - following)
        guard let shortage = entry(status.uuid).shortage, status.state == .protected else { return status }
        let left = entry(status.uuid).due > .now ? Int(entry(status.uuid).due.milliseconds(since: .now) / 1000) : 0
        status.reason += (status.reason.isEmpty ? "" : "; ") + "\(shortage.text). Next attempt in \(left) s"
        return status
    }
}
