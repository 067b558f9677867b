import CLibvirt

/// Which of a domain's two definitions a call is about (`virDomainModificationImpact`); none: the running one if it runs.
public struct ModificationImpact: OptionSet, Sendable {
    public let rawValue: UInt32
    public init(rawValue: UInt32) { self.rawValue = rawValue }
    public static let live = ModificationImpact(rawValue: VIR_DOMAIN_AFFECT_LIVE.rawValue)
    public static let config = ModificationImpact(rawValue: VIR_DOMAIN_AFFECT_CONFIG.rawValue)
}

/// A domain's `<metadata>` belongs to whoever names a namespace in it; title and description are plain text.
extension Domain {
    /// The element of that namespace as XML; nil when there is none (`virDomainGetMetadata`, VIR_DOMAIN_METADATA_ELEMENT).
    public func metadata(namespace: String, impact: ModificationImpact = []) throws(LibvirtError) -> String? {
        try metadata(VIR_DOMAIN_METADATA_ELEMENT, namespace, impact)
    }

    /// Replaces the namespace's element whole; nil removes it (`virDomainSetMetadata`).
    ///
    /// - Parameter prefix: what libvirt writes in front of the element's name, for example `shadow` of `<shadow:policy xmlns:shadow='...'>`.
    public func setMetadata(_ element: String?, namespace: String, prefix: String,
                            impact: ModificationImpact = []) throws(LibvirtError) {
        try setMetadata(VIR_DOMAIN_METADATA_ELEMENT, element, prefix, namespace, impact)
    }

    public func title(impact: ModificationImpact = []) throws(LibvirtError) -> String? {
        try metadata(VIR_DOMAIN_METADATA_TITLE, nil, impact)
    }

    public func setTitle(_ title: String?, impact: ModificationImpact = []) throws(LibvirtError) {
        try setMetadata(VIR_DOMAIN_METADATA_TITLE, title, nil, nil, impact)
    }

    public func descriptionText(impact: ModificationImpact = []) throws(LibvirtError) -> String? {
        try metadata(VIR_DOMAIN_METADATA_DESCRIPTION, nil, impact)
    }

    private func metadata(_ type: virDomainMetadataType, _ namespace: String?,
                          _ impact: ModificationImpact) throws(LibvirtError) -> String? {
        do throws(LibvirtError) {
            return try call("virDomainGetMetadata") {
                owned(virDomainGetMetadata($0, Int32(bitPattern: type.rawValue), namespace, impact.rawValue))
            }
        } catch {
            if error.kind == .noDomainMetadata { return nil }
            throw error
        }
    }

    private func setMetadata(_ type: virDomainMetadataType, _ text: String?, _ prefix: String?, _ namespace: String?,
                             _ impact: ModificationImpact) throws(LibvirtError) {
        _ = try call("virDomainSetMetadata") {
            ok(virDomainSetMetadata($0, Int32(bitPattern: type.rawValue), text, prefix, namespace, impact.rawValue))
        }
    }
}
