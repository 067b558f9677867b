/// How this host's BMC (baseboard management controller) is reached; all that the file says about it.
public struct BMCSettings: Sendable, Equatable {
    public enum Access: Sendable, Equatable {
        /// Through the kernel's driver, `/dev/ipmi0`.
        case local
        /// By IPMI 2.0 over the network.
        case network(PeerAddress)
    }

    /// What a session may do; `user` is enough for sensors and the event log on most BMCs.
    public enum Privilege: String, Sendable, CaseIterable {
        case user, `operator`, admin
    }

    /// The RMCP+ port (IANA).
    public static let defaultPort: UInt16 = 623
    /// Cipher suites that FreeIPMI has (`ipmi_monitoring.h`): 3 is AES with SHA1, 17 AES with SHA256; 0, 1, 6, 15 do not even sign.
    public static let cipherSuites: Set<Int> = [0, 1, 2, 3, 6, 7, 8, 11, 12, 15, 16, 17]
    /// Seconds from one reading to the next. A BMC is a small processor: many need seconds for one.
    public static let intervalRange = 5...3600
    /// What IPMI 2.0 has room for.
    public static let longestUser = 16, longestPassword = 20

    /// Nil: no BMC is watched.
    public var access: Access?
    /// Empty: the BMC's anonymous user.
    public var user = ""
    /// Read at every reading, so that a new password needs no restart.
    public var passwordFile = "/etc/shadow-virt/bmc-password"
    public var privilege = Privilege.user
    public var cipherSuite = 3
    public var workarounds: [BMCWorkaround] = []
    /// Seconds from one reading to the next while the BMC answers.
    public var interval = 30

    public init() {}

    /// As the file has it, for messages: `local` or ADDRESS:PORT.
    public var name: String {
        switch access {
        case nil: "no BMC"
        case .local: "local"
        case .network(let address): address.description
        }
    }

    /// ADDRESS or ADDRESS:PORT, an IPv6 address in brackets; nil when it is neither.
    static func address(_ text: String) -> PeerAddress? { PeerAddress(text) ?? PeerAddress("\(text):\(defaultPort)") }
}

/// Deviations from IPMI that real BMCs need, under the names that FreeIPMI's tools have for them (`-W`, ipmi-sensors(8), "workarounds").
public enum BMCWorkaround: String, Sendable, Equatable, CaseIterable, Codable {
    // In the session with a BMC on the network.
    case authcap, intel20, supermicro20, sun20, opensesspriv, integritycheckvalue, nochecksumcheck
    // With the kernel's driver.
    case assumeio, spinpoll
    // In reading, however the BMC is reached.
    case discretereading, ignorescanningdisabled, assumebmcowner, assumesystemevent, assumemaxsdrrecordcount

    /// What kind of access it is for; nil: either.
    public var isForNetwork: Bool? {
        switch self {
        case .authcap, .intel20, .supermicro20, .sun20, .opensesspriv, .integritycheckvalue, .nochecksumcheck: true
        case .assumeio, .spinpoll: false
        case .discretereading, .ignorescanningdisabled, .assumebmcowner, .assumesystemevent, .assumemaxsdrrecordcount: nil
        }
    }
}
