import CLibvirt
import Foundation

/// Which domains to list (`virConnectListAllDomainsFlags`): within each pair of opposites none given means both.
public struct DomainFilter: OptionSet, Sendable {
    public let rawValue: UInt32
    public init(rawValue: UInt32) { self.rawValue = rawValue }
    public static let active = DomainFilter(rawValue: VIR_CONNECT_LIST_DOMAINS_ACTIVE.rawValue)
    public static let inactive = DomainFilter(rawValue: VIR_CONNECT_LIST_DOMAINS_INACTIVE.rawValue)
    public static let persistent = DomainFilter(rawValue: VIR_CONNECT_LIST_DOMAINS_PERSISTENT.rawValue)
    public static let transient = DomainFilter(rawValue: VIR_CONNECT_LIST_DOMAINS_TRANSIENT.rawValue)
    public static let running = DomainFilter(rawValue: VIR_CONNECT_LIST_DOMAINS_RUNNING.rawValue)
    public static let paused = DomainFilter(rawValue: VIR_CONNECT_LIST_DOMAINS_PAUSED.rawValue)
    public static let shutoff = DomainFilter(rawValue: VIR_CONNECT_LIST_DOMAINS_SHUTOFF.rawValue)
    public static let autostart = DomainFilter(rawValue: VIR_CONNECT_LIST_DOMAINS_AUTOSTART.rawValue)
    public static let managedSave = DomainFilter(rawValue: VIR_CONNECT_LIST_DOMAINS_MANAGEDSAVE.rawValue)
}

/// `virDomainDefineFlags`.
public struct DefineFlags: OptionSet, Sendable {
    public let rawValue: UInt32
    public init(rawValue: UInt32) { self.rawValue = rawValue }
    /// Checks the XML against the schema.
    public static let validate = DefineFlags(rawValue: VIR_DOMAIN_DEFINE_VALIDATE.rawValue)
}

extension Connection {
    /// All domains that pass the filter (`virConnectListAllDomains`).
    public func domains(_ filter: DomainFilter = []) throws(LibvirtError) -> [Domain] {
        try call("virConnectListAllDomains") { pointer in
            var list: UnsafeMutablePointer<OpaquePointer?>?
            let count = virConnectListAllDomains(pointer, &list, filter.rawValue)
            return ownedList(count: count, list) { Domain($0, self) }
        }
    }

    /// `virDomainLookupByName`. Throws an error with `isNoDomain` when there is none, as the other lookups do.
    public func lookup(name: String) throws(LibvirtError) -> Domain {
        try call("virDomainLookupByName") { virDomainLookupByName($0, name).map { Domain($0, self) } }
    }

    /// A running domain by its number (`virDomainLookupByID`).
    public func lookup(id: Int32) throws(LibvirtError) -> Domain {
        try call("virDomainLookupByID") { virDomainLookupByID($0, id).map { Domain($0, self) } }
    }

    /// `virDomainLookupByUUIDString`.
    public func lookup(uuid: String) throws(LibvirtError) -> Domain {
        try call("virDomainLookupByUUIDString") { virDomainLookupByUUIDString($0, uuid).map { Domain($0, self) } }
    }

    /// As virsh finds its argument: by number, then by UUID, then by name.
    public func lookup(anyOf word: String) throws(LibvirtError) -> Domain {
        if let id = Int32(word), id >= 0, let domain = try existing({ () throws(LibvirtError) in try lookup(id: id) }) { return domain }
        if UUID(uuidString: word) != nil,
           let domain = try existing({ () throws(LibvirtError) in try lookup(uuid: word) }) { return domain }
        return try lookup(name: word)
    }

    /// nil instead of "no such domain".
    private func existing(_ lookup: () throws(LibvirtError) -> Domain) throws(LibvirtError) -> Domain? {
        do throws(LibvirtError) {
            return try lookup()
        } catch {
            if error.isNoDomain { return nil }
            throw error
        }
    }

    /// Stores a definition, new or in place of the one with the same name and UUID (`virDomainDefineXMLFlags`).
    @discardableResult
    public func define(xml: String, flags: DefineFlags = []) throws(LibvirtError) -> Domain {
        try call("virDomainDefineXMLFlags") { virDomainDefineXMLFlags($0, xml, flags.rawValue).map { Domain($0, self) } }
    }

    /// Starts a domain from XML without storing it (`virDomainCreateXML`).
    public func create(xml: String, flags: StartFlags = []) throws(LibvirtError) -> Domain {
        try call("virDomainCreateXML") { virDomainCreateXML($0, xml, flags.rawValue).map { Domain($0, self) } }
    }

    /// Names of libvirt's networks that are up (`virConnectListNetworks`).
    public func networkNames() throws(LibvirtError) -> [String] {
        try call("virConnectListNetworks") { pointer in
            // As many as a host has; one that comes up in between is found the next time.
            let count = virConnectNumOfNetworks(pointer)
            guard count >= 0 else { return nil }
            var names = [UnsafeMutablePointer<CChar>?](repeating: nil, count: Int(count) + 1)
            let found = virConnectListNetworks(pointer, &names, count)
            return found < 0 ? nil : names.prefix(Int(found)).map { owned($0) ?? "" }
        }
    }
}
