import CLibvirt

/// Somebody changed a domain's metadata (`virConnectDomainEventMetadataChangeCallback`).
public struct MetadataEvent: Sendable, Hashable {
    public let domainName: String
    /// Lower-case, with hyphens.
    public let domainUUID: String
    /// The element's namespace; nil: title or description.
    public let namespace: String?
}

extension Connection {
    /// Changes of title, description and elements of `<metadata>`, of one domain or all (`virConnectDomainEventRegisterAny`,
    /// VIR_DOMAIN_EVENT_ID_METADATA_CHANGE). A definition that is replaced whole is a lifecycle event instead.
    public func onMetadataChange(domain: Domain? = nil, _ handler: @escaping @Sendable (MetadataEvent) -> Void) throws(LibvirtError) -> EventSubscription {
        let callback: virConnectDomainEventMetadataChangeCallback = { _, domain, _, namespace, opaque in
            guard let domain, let name = borrowed(virDomainGetName(domain)), let uuid = uuidString({ virDomainGetUUIDString(domain, $0) }) else { return }
            EventHub.deliver(MetadataEvent(domainName: name, domainUUID: uuid, namespace: borrowed(namespace)), to: opaque)
        }
        return try subscribe(domain, VIR_DOMAIN_EVENT_ID_METADATA_CHANGE, handler, unsafeBitCast(callback, to: virConnectDomainEventGenericCallback.self))
    }
}

extension ReconnectingConnection {
    /// Changes of metadata of all domains, on every connection from now on.
    public func onMetadataChange(_ handler: @escaping @Sendable (MetadataEvent) -> Void) -> EventSubscription {
        add(DurableSubscription { connection throws(LibvirtError) in try connection.onMetadataChange(handler) })
    }
}
