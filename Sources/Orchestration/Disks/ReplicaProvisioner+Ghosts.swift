import Platform

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
