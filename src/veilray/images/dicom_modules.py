"""Which elements of a radiograph still hold for an image derived from it, by the modules of PS3.3 that define them.

An allow-list: what is not named here is not copied. Left out on purpose, because they speak of other pixels or of
another object: Smallest and Largest Image Pixel Value (0028,0106), (0028,0107), histograms, icons, signatures, the
series' and the instance's own UIDs, dates and descriptions, private elements.
"""

from __future__ import annotations

_PATIENT = """
    PatientName PatientID IssuerOfPatientID IssuerOfPatientIDQualifiersSequence TypeOfPatientID PatientBirthDate
    PatientBirthTime PatientSex OtherPatientIDsSequence OtherPatientNames EthnicGroup PatientComments
    QualityControlSubject PatientSpeciesDescription PatientSpeciesCodeSequence PatientBreedDescription
    PatientBreedCodeSequence BreedRegistrationSequence ResponsiblePerson ResponsiblePersonRole ResponsibleOrganization
    PatientIdentityRemoved DeidentificationMethod DeidentificationMethodCodeSequence
    ClinicalTrialSponsorName ClinicalTrialProtocolID ClinicalTrialProtocolName ClinicalTrialSiteID ClinicalTrialSiteName
    ClinicalTrialSubjectID ClinicalTrialSubjectReadingID ClinicalTrialTimePointID ClinicalTrialTimePointDescription
    ClinicalTrialCoordinatingCenterName ClinicalTrialProtocolEthicsCommitteeName
    ClinicalTrialProtocolEthicsCommitteeApprovalNumber
"""  # C.7.1.1, C.7.1.3, C.7.2.3

_STUDY = """
    StudyInstanceUID StudyDate StudyTime ReferringPhysicianName ReferringPhysicianIdentificationSequence StudyID
    AccessionNumber IssuerOfAccessionNumberSequence StudyDescription PhysiciansOfRecord
    PhysiciansOfRecordIdentificationSequence NameOfPhysiciansReadingStudy ReferencedStudySequence ProcedureCodeSequence
    RequestingService AdmittingDiagnosesDescription AdmittingDiagnosesCodeSequence PatientAge PatientSize PatientWeight
    Occupation AdditionalPatientHistory AdmissionID IssuerOfAdmissionIDSequence ServiceEpisodeID
    IssuerOfServiceEpisodeIDSequence ServiceEpisodeDescription PatientSexNeutered PatientState MedicalAlerts Allergies
    SmokingStatus PregnancyStatus LastMenstrualDate
"""  # C.7.2.1, C.7.2.2

_SERIES = """
    Modality PresentationIntentType Laterality BodyPartExamined ProtocolName PerformingPhysicianName OperatorsName
    RequestAttributesSequence PerformedProcedureStepID PerformedProcedureStepStartDate PerformedProcedureStepStartTime
    PerformedProcedureStepDescription PerformedProtocolCodeSequence ReferencedPerformedProcedureStepSequence
    CommentsOnThePerformedProcedureStep ViewPosition FilterType CollimatorGridName FocalSpots PlateType PhosphorType
"""  # C.7.3.1, C.8.1.1, C.8.11.1

_EQUIPMENT = """
    Manufacturer InstitutionName InstitutionAddress StationName InstitutionalDepartmentName ManufacturerModelName
    DeviceSerialNumber SoftwareVersions DeviceUID SpatialResolution DateOfLastCalibration TimeOfLastCalibration
    ContributingEquipmentSequence ConversionType SecondaryCaptureDeviceID SecondaryCaptureDeviceManufacturer
    SecondaryCaptureDeviceManufacturerModelName SecondaryCaptureDeviceSoftwareVersions NominalScannedPixelSpacing
    DateOfSecondaryCapture TimeOfSecondaryCapture
"""  # C.7.5.1, C.8.6.1, C.12.1

_IMAGE = """
    SpecificCharacterSet SOPClassUID TimezoneOffsetFromUTC InstanceNumber PatientOrientation ContentDate ContentTime
    AcquisitionNumber AcquisitionDate AcquisitionTime AcquisitionDateTime ImagesInAcquisition IrradiationEventUID
    ImageComments QualityControlImage BurnedInAnnotation RecognizableVisualFeatures LossyImageCompression
    LossyImageCompressionRatio LossyImageCompressionMethod DerivationCodeSequence PresentationLUTShape ImageLaterality
    AnatomicRegionSequence PrimaryAnatomicStructureSequence LongitudinalTemporalInformationModified
"""  # C.7.6.1, C.8.11.2, C.12.1

_PIXELS = """
    SamplesPerPixel PhotometricInterpretation Rows Columns BitsAllocated BitsStored HighBit PixelRepresentation
    PixelAspectRatio PixelPaddingValue PixelPaddingRangeLimit PixelSpacing ImagerPixelSpacing
    PixelSpacingCalibrationType PixelSpacingCalibrationDescription EstimatedRadiographicMagnificationFactor
    PixelIntensityRelationship PixelIntensityRelationshipSign RescaleIntercept RescaleSlope RescaleType WindowCenter
    WindowWidth WindowCenterWidthExplanation VOILUTFunction VOILUTSequence CalibrationImage
    ShutterShape ShutterLeftVerticalEdge ShutterRightVerticalEdge ShutterUpperHorizontalEdge ShutterLowerHorizontalEdge
    CenterOfCircularShutter RadiusOfCircularShutter VerticesOfThePolygonalShutter ShutterPresentationValue
    ShutterPresentationColorCIELabValue
"""  # C.7.6.3, C.7.6.11, C.8.11.3, C.11.2

_ACQUISITION = """
    KVP PlateID ExposureTime XRayTubeCurrent Exposure ExposureInuAs ExposureTimeInuS XRayTubeCurrentInuA GeneratorPower
    AcquisitionDeviceProcessingDescription AcquisitionDeviceProcessingCode CassetteOrientation CassetteSize
    ExposuresOnPlate RelativeXRayExposure Sensitivity ExposureIndex TargetExposureIndex DeviationIndex
    DistanceSourceToDetector DistanceSourceToPatient DistanceSourceToEntrance DistanceObjectToTableTop
    DetectorType DetectorConfiguration DetectorDescription DetectorMode DetectorID DateOfLastDetectorCalibration
    TimeOfLastDetectorCalibration ExposuresOnDetectorSinceLastCalibration ExposuresOnDetectorSinceManufactured
    DetectorTimeSinceLastExposure DetectorBinning DetectorManufacturerName DetectorManufacturerModelName
    DetectorConditionsNominalFlag DetectorTemperature DetectorElementPhysicalSize DetectorElementSpacing
    DetectorActiveShape DetectorActiveDimensions DetectorActiveOrigin DetectorActiveTime
    DetectorActivationOffsetFromExposure FieldOfViewShape FieldOfViewDimensions FieldOfViewOrigin FieldOfViewRotation
    FieldOfViewHorizontalFlip CollimatorShape CollimatorLeftVerticalEdge CollimatorRightVerticalEdge
    CollimatorUpperHorizontalEdge CollimatorLowerHorizontalEdge CenterOfCircularCollimator RadiusOfCircularCollimator
    VerticesOfThePolygonalCollimator ProjectionEponymousNameCodeSequence PatientPosition ViewCodeSequence
    PatientOrientationCodeSequence PatientGantryRelationshipCodeSequence PositionerType PositionerPrimaryAngle
    PositionerSecondaryAngle DetectorPrimaryAngle DetectorSecondaryAngle ColumnAngulation TableType TableAngle
    BodyPartThickness CompressionForce ExposureControlMode ExposureControlModeDescription PhototimerSetting
    ExposureStatus EntranceDose EntranceDoseInmGy ImageAndFluoroscopyAreaDoseProduct ExposedArea RectificationType
    XRayOutput HalfValueLayer OrganDose OrganExposed AnodeTargetMaterial FilterMaterial FilterThicknessMinimum
    FilterThicknessMaximum Grid GridAbsorbingMaterial GridSpacingMaterial GridThickness GridPitch GridAspectRatio
    GridPeriod GridFocalDistance CommentsOnRadiationDose RadiationSetting RadiationMode AcquisitionContextSequence
    AcquisitionContextDescription DeviceSequence InterventionSequence ContrastBolusAgent ContrastBolusAgentSequence
    ContrastBolusRoute ContrastBolusAdministrationRouteSequence ContrastBolusVolume ContrastBolusStartTime
    ContrastBolusStopTime ContrastBolusTotalDose ContrastBolusIngredient ContrastBolusIngredientConcentration
"""  # C.7.6.4, C.7.6.12, C.7.6.14, C.8.1.2, C.8.7.2-C.8.7.10, C.8.11.4, C.8.11.5

KEPT = frozenset("".join((_PATIENT, _STUDY, _SERIES, _EQUIPMENT, _IMAGE, _PIXELS, _ACQUISITION)).split())
"""Keywords (PS3.6 chapter 6) of the elements that a derived radiograph takes over from its source."""

KEPT_OF_OVERLAYS = frozenset({0x0010, 0x0011, 0x0022, 0x0040, 0x0045, 0x0050, 0x0100, 0x0102, 0x1500, 0x3000})
"""Element numbers of an overlay group 60xx that are taken over (C.9.2): all but the pixel statistics of a region of
interest, (60xx,1301) to (60xx,1303), which were measured on other pixels."""
