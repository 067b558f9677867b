/// How this host's BMC (baseboard management controller) is reached; all that the file says about it.
public struct BMCSettings: Sendable, Equatable {
    public enum Access: Sendable, Equatable {
        /// In band, by `driver`.
        case local
        /// By IPMI over the network.
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
    /// What IPMI 2.0 has room for; a password of IPMI 1.5 ends with its 16th byte.
    public static let longestUser = 16, longestPassword = 20, longestOldPassword = 16, longestKG = 20

    /// Nil: no BMC is watched.
    public var access: Access?
    /// Empty: the BMC's anonymous user.
    public var user = ""
    /// Read at every reading, so that a new password needs no restart.
    public var passwordFile = "/etc/shadow-virt/bmc-password"
    public var privilege = Privilege.user
    public var cipherSuite = 3
    public var version = BMCVersion.ipmi20
    /// With IPMI 1.5 only.
    public var authentication = BMCAuthentication.md5
    /// The file with the BMC's key K_g beside the password; nil: it has none. With IPMI 2.0 only.
    public var kgFile: String?
    public var driver = BMCDriver.openipmi
    /// Nil: the driver's own, `/dev/ipmi0` or `/dev/i2c-0`.
    public var device: String?
    public var workarounds: [BMCWorkaround] = []
    /// Seconds from one reading to the next while the BMC answers.
    public var interval = 30

    public init() {}

    /// How sessions with this BMC are made; nil: none is watched.
    public var session: BMCSession? {
        switch access {
        case nil: nil
        case .local: .driver
        case .network: version == .ipmi15 ? .lan15 : .lan20
        }
    }

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

/// What is spoken on the network.
public enum BMCVersion: String, Sendable, CaseIterable {
    case ipmi15 = "1.5", ipmi20 = "2.0"
}

/// How an IPMI 1.5 session proves the password (IPMI 2.0, 13.6): `none` and `straight` protect nothing.
public enum BMCAuthentication: String, Sendable, Codable, CaseIterable {
    case none, straight, md2, md5
}

/// Who talks to the BMC of the host itself: the kernel's driver, or FreeIPMI's own, which work where the kernel has none.
public enum BMCDriver: String, Sendable, Codable, CaseIterable {
    case openipmi, kcs, ssif

    /// The device that it opens unless another is named; `kcs` talks to the hardware's ports.
    public var device: String? {
        switch self {
        case .openipmi: "/dev/ipmi0"
        case .ssif: "/dev/i2c-0"
        case .kcs: nil
        }
    }
}

/// The kinds of sessions, which differ in their workarounds.
public enum BMCSession: String, Sendable, Codable, CaseIterable {
    case lan20, lan15, driver
}

/// Deviations from IPMI that real BMCs need, under the names that FreeIPMI's tools have for them (`-W`, ipmi-sensors(8), "workarounds").
public enum BMCWorkaround: String, Sendable, Equatable, CaseIterable, Codable {
    // On the network.
    case authcap, nochecksumcheck
    // There by IPMI 2.0 only.
    case intel20, supermicro20, sun20, opensesspriv, integritycheckvalue
    // There by IPMI 1.5 only.
    case idzero, unexpectedauth, forcepermsg, endianseq, noauthcodecheck
    // In band.
    case assumeio, spinpoll
    // In reading, however the BMC is reached.
    case discretereading, ignorescanningdisabled, assumebmcowner, assumesystemevent, assumemaxsdrrecordcount

    /// What kinds of sessions it is for.
    public var sessions: Set<BMCSession> {
        switch self {
        case .authcap, .nochecksumcheck: [.lan20, .lan15]
        case .intel20, .supermicro20, .sun20, .opensesspriv, .integritycheckvalue: [.lan20]
        case .idzero, .unexpectedauth, .forcepermsg, .endianseq, .noauthcodecheck: [.lan15]
        case .assumeio, .spinpoll: [.driver]
        case .discretereading, .ignorescanningdisabled, .assumebmcowner, .assumesystemevent, .assumemaxsdrrecordcount: Set(BMCSession.allCases)
        }
    }
}
