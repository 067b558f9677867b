import ControlProtocol
import Libvirt

/// Which domain a command means: by id, UUID or name, in virsh's order. Domains that libvirt here does not have any more are found by UUID and name.
extension Registry {
    public struct DomainIdentity: Sendable, Equatable {
        public var uuid: String
        /// Nil: a UUID that nothing here has a name for.
        public var name: String?
    }

    /// Nil: nothing of that name, id or UUID is known here. Asks libvirt only about numbers, and about what no protection is about.
    public func identity(of word: String) -> DomainIdentity? {
        if Int32(word) != nil, let domain = try? lookup(word) { return DomainIdentity(uuid: domain.uuid, name: domain.name) }
        let known = entries.read { entries in
            entries.primaries.values.map { DomainIdentity(uuid: $0.domain.uuid, name: $0.domain.name) } + entries.shadows.values.map { DomainIdentity(uuid: $0.uuid, name: $0.name) }
        }
        if let one = known.first(where: { $0.uuid == word.lowercased() }) ?? known.first(where: { $0.name == word }) { return one }
        return (try? lookup(word)).map { DomainIdentity(uuid: $0.uuid, name: $0.name) }
    }
}
