import Platform
import Telemetry

extension PrimaryProtection {
    /// Everything that was noted of a ghost on this host goes; what was measured of it when the guest itself has ended.
    func forgetGhost(ended: Bool) {
        replicaNotes.forgetOwnDisks()
        if ended { TelemetryKeeper.store(environment.configuration).remove(domain.uuid) }
    }
}

extension ReplicaProvisioner {
    /// Forgets what was noted of the disks that a ghost ran on here. They are somebody else's files and stay; a volume of ours among them stays noted.
    func forgetOwnDisks() {
        do {
            guard let record = try records.read(uuid), record.disks.values.allSatisfy({ $0.origin != .created }) else { return }
            records.remove(uuid)
        } catch {
            Log.warning("\(domain): \(error)")
        }
    }
}
