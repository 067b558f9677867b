import ControlProtocol
import Libvirt
import Platform

/// A domain's policy in its metadata. It stands in the persistent definition, which goes over with the guest and outlives it, and in the running
/// one, which is all that a transient domain has. Where both say something and differ, the persistent one counts: it is carried to the shadow's host
/// whenever it changes, the running one only when the shadow is made.
struct PolicyStore {
    let domain: Domain

    private func text(_ impact: ModificationImpact) throws -> String? { try domain.metadata(namespace: DomainPolicy.namespace, impact: impact) }

    /// The element as it stands there; nil: none.
    func text() throws -> String? {
        if try domain.isPersistent(), let text = try text(.config) { return text }
        return try domain.isActive() ? try text(.live) : nil
    }

    func read() throws -> DomainPolicy? { try text().map { text throws in try DomainPolicy(xml: text) } }

    func write(_ policy: DomainPolicy) throws { try write(text: policy.xml) }

    /// Writes an element, or removes it (nil), wherever it can stand.
    func write(text: String?) throws {
        var impact: ModificationImpact = []
        if try domain.isActive() { impact.insert(.live) }
        if try domain.isPersistent() { impact.insert(.config) }
        try domain.setMetadata(text, namespace: DomainPolicy.namespace, prefix: DomainPolicy.prefix, impact: impact)
    }

    /// Brings both definitions of a running domain to one policy: after a hand-over the running one may be older, and a definition that was replaced by
    /// a program that knows nothing of us lacks it.
    func reconcile() throws {
        guard try domain.isActive(), try domain.isPersistent() else { return }
        let (config, live) = (try text(.config), try text(.live))
        guard let text = config ?? live, config != live else { return }
        // Libvirt indents anew what it reads from its files.
        if let config, let live, let one = try? DomainPolicy(xml: config), let other = try? DomainPolicy(xml: live), one == other { return }
        try domain.setMetadata(text, namespace: DomainPolicy.namespace, prefix: DomainPolicy.prefix, impact: config == nil ? .config : .live)
        Log.info("\(domain.name): its policy was missing or older in its \(config == nil ? "persistent" : "running") definition; brought over")
    }
}
